// Vectors of the compiler's own kind (GCC, Clang): one source for AVX-512, AVX2, NEON and what else there is.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#ifndef LANES  // floats in a register: 16 with AVX-512, 8 with AVX2, 4 elsewhere
#define LANES 4
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

// aligned to one element only: a pointer into any array of T may be read as a vector
template <class T, int L>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * L), aligned(sizeof(T)), may_alias));
};
template <class T>
struct VectorOf<T, 1> {
  typedef T type;
};
template <class T, int L>
using Vector = typename VectorOf<T, L>::type;

struct bf16 {
  uint16_t bits;
};

INLINE float to_real(float v) { return v; }
INLINE double to_real(double v) { return v; }
INLINE float to_real(bf16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
INLINE void from_real(float v, float* to) { *to = v; }
INLINE void from_real(double v, double* to) { *to = v; }
INLINE void from_real(float v, bf16* to) {  // to the nearest, ties to even, as torch does
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  to->bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Memory that is not set to anything, on a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count) : data_(nullptr) {
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes && !(data_ = static_cast<T*>(std::aligned_alloc(64, bytes)))) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

template <class V, int... I>
INLINE V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  typedef decltype(a < b) Index;  // integers of the same size
  return __builtin_shuffle(a, b, Index{I...});
#endif
}

// Four rows of four become four columns.
template <class T>
INLINE void transpose4(Vector<T, 4>* r) {
  typedef Vector<T, 4> V;
  V a = shuffled(r[0], r[1], std::integer_sequence<int, 0, 4, 1, 5>());
  V b = shuffled(r[0], r[1], std::integer_sequence<int, 2, 6, 3, 7>());
  V c = shuffled(r[2], r[3], std::integer_sequence<int, 0, 4, 1, 5>());
  V d = shuffled(r[2], r[3], std::integer_sequence<int, 2, 6, 3, 7>());
  r[0] = shuffled(a, c, std::integer_sequence<int, 0, 1, 4, 5>());
  r[1] = shuffled(a, c, std::integer_sequence<int, 2, 3, 6, 7>());
  r[2] = shuffled(b, d, std::integer_sequence<int, 0, 1, 4, 5>());
  r[3] = shuffled(b, d, std::integer_sequence<int, 2, 3, 6, 7>());
}

template <class IO, class T>
INLINE Vector<T, 4> load4(const IO* p) {
  return Vector<T, 4>{T(to_real(p[0])), T(to_real(p[1])), T(to_real(p[2])), T(to_real(p[3]))};
}
template <>
INLINE Vector<float, 4> load4<float, float>(const float* p) {
  return *reinterpret_cast<const Vector<float, 4>*>(p);
}
template <class IO, class T>
INLINE void store4(IO* p, Vector<T, 4> v) {
  for (int i = 0; i < 4; i++) from_real(v[i], p + i);
}
template <>
INLINE void store4<float, float>(float* p, Vector<float, 4> v) {
  *reinterpret_cast<Vector<float, 4>*>(p) = v;
}

// Columns [j0, j1) of `rows` rows of x become rows of the panel: panel[j][b] = x[b][j], zero for b in [rows, P).
// Sixteen columns at a time, so that each line of x is read once.
template <class IO, class T>
void pack(const IO* x, size_t stride, int rows, int j0, int j1, T* panel, int P) {
  for (int j = j0; j < j1; j += 16) {
    int width = j1 - j < 16 ? j1 - j : 16, b = 0;
    if (width % 4 == 0)
      for (; b + 4 <= rows; b += 4)
        for (int c = 0; c < width; c += 4) {
          Vector<T, 4> r[4];
          for (int i = 0; i < 4; i++) r[i] = load4<IO, T>(x + (b + i) * stride + j + c);
          transpose4<T>(r);
          for (int i = 0; i < 4; i++) *reinterpret_cast<Vector<T, 4>*>(panel + size_t(j + c + i) * P + b) = r[i];
        }
    for (; b < P; b++)
      for (int c = 0; c < width; c++) panel[size_t(j + c) * P + b] = b < rows ? T(to_real(x[b * stride + j + c])) : T(0);
  }
}

// The way back, for `count` rows of a panel, with a bias for each: y[b][i] = panel[i][b] + bias[i].
template <class IO, class T>
void unpack(const T* panel, int P, int count, const T* bias, IO* y, size_t stride, int rows) {
  for (int i = 0; i < count; i += 16) {
    int width = count - i < 16 ? count - i : 16, b = 0;
    if (width % 4 == 0)
      for (; b + 4 <= rows; b += 4)
        for (int c = 0; c < width; c += 4) {
          Vector<T, 4> r[4];
          for (int k = 0; k < 4; k++) {
            r[k] = *reinterpret_cast<const Vector<T, 4>*>(panel + size_t(i + c + k) * P + b);
            if (bias) r[k] += bias[i + c + k];
          }
          transpose4<T>(r);
          for (int k = 0; k < 4; k++) store4<IO, T>(y + (b + k) * stride + i + c, r[k]);
        }
    for (; b < rows; b++)
      for (int c = 0; c < width; c++)
        from_real(panel[size_t(i + c) * P + b] + (bias ? bias[i + c] : T(0)), y + b * stride + i + c);
  }
}

// Sums of L vectors: lane q of the result is the sum of all lanes of r[q].
template <class V, int STEP, int L, int... I>
INLINE V added(V a, V b, std::integer_sequence<int, I...>) {
  return shuffled(a, b, std::integer_sequence<int, ((I & STEP) ? L + I - STEP : I)...>()) +
         shuffled(a, b, std::integer_sequence<int, ((I & STEP) ? L + I : I + STEP)...>());
}
template <class V, int STEP, int L>
INLINE V sums(V* r) {
  if constexpr (STEP < L) {
    for (int q = 0; q < L; q += 2 * STEP)
      r[q] = added<V, STEP, L>(r[q], r[q + STEP], std::make_integer_sequence<int, L>());
    return sums<V, 2 * STEP, L>(r);
  } else {
    return r[0];
  }
}

}  // namespace
