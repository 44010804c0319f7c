// The kernels against plain loops, with no Python: for sanitizers, and for processors that are not at hand.
//   g++ -std=c++17 -g -O1 -fsanitize=address,undefined -fopenmp -Wno-psabi selftest.cpp -o selftest && ./selftest
#include "linear.cpp"
#include "conv.cpp"

#include <cmath>
#include <cstdio>
#include <random>

namespace {

std::mt19937 random_bits(0);
int failures = 0;

template <class IO>
std::vector<IO> numbers(size_t count) {  // that bfloat16 has as well
  std::vector<IO> found(count);
  for (IO& v : found) from_real(decltype(to_real(v))(int(random_bits() % 257) - 128) / 128, &v);
  return found;
}

std::vector<char> places(size_t count, int percent) {
  std::vector<char> found(count);
  for (char& v : found) v = int(random_bits() % 100) < percent;
  return found;
}

template <class IO, class T>
void same(const char* what, const std::vector<IO>& got, const std::vector<T>& expected) {
  double tolerance = sizeof(IO) == 2 ? 8e-3 : 2e-4;
  for (size_t i = 0; i < got.size(); i++)
    if (!(std::fabs(to_real(got[i]) - double(expected[i])) <= tolerance * (1 + std::fabs(double(expected[i]))))) {
      std::printf("%s: entry %zu is %g, not %g\n", what, i, double(to_real(got[i])), double(expected[i]));
      failures++;
      return;
    }
}

struct Index {
  std::vector<int> pointer{0}, column, at;  // at: in the flat weight
};

// Rows of a flat weight whose entry (row, column) is at place(row, column)
template <class F>
Index index_of(const std::vector<char>& mask, int rows, int columns, int block, F place) {
  Index found;
  for (int i = 0; i < rows; i++)
    for (int j0 = 0; j0 < columns; j0 += block) {
      for (int j = j0; j < j0 + block && j < columns; j++)
        if (mask[place(i, j)]) found.column.push_back(j), found.at.push_back(place(i, j));
      found.pointer.push_back(int(found.column.size()));
    }
  return found;
}

std::vector<int> order_of(const Index& turned, const Index& own, size_t size) {
  std::vector<int> rank(size), order;
  for (size_t k = 0; k < own.at.size(); k++) rank[own.at[k]] = int(k);
  for (int at : turned.at) order.push_back(rank[at]);
  return order;
}

template <class IO, class T = IO>
void linear(int kind, int threads, int batch, int out, int in, int percent, int block) {
  auto mask = places(size_t(out) * in, percent);
  auto own = index_of(mask, out, in, block, [&](int i, int j) { return i * in + j; });
  auto turned = index_of(mask, in, out, block, [&](int j, int i) { return i * in + j; });
  auto order = order_of(turned, own, mask.size());
  auto values = numbers<T>(own.at.size()), bias = numbers<T>(out);
  auto x = numbers<IO>(size_t(batch) * in), g = numbers<IO>(size_t(batch) * out), y = g, gx = x;
  std::vector<T> gv(values.size()), gb(out), ey(g.size()), ex(x.size()), ev(values.size()), eb(out);
  for (int b = 0; b < batch; b++) {
    for (int i = 0; i < out; i++) ey[b * out + i] += bias[i], eb[i] += to_real(g[b * out + i]);
    for (size_t k = 0; k < values.size(); k++) {
      int i = own.at[k] / in, j = own.at[k] % in;
      ey[b * out + i] += values[k] * to_real(x[b * in + j]);
      ex[b * in + j] += values[k] * to_real(g[b * out + i]);
      ev[k] += to_real(g[b * out + i]) * to_real(x[b * in + j]);
    }
  }
  int blocks = (in + block - 1) / block, turned_blocks = (out + block - 1) / block;
  failures += JOIN(linear_forward, ISA)(kind, threads, batch, out, in, blocks, own.pointer.data(), own.column.data(),
                                        values.data(), bias.data(), x.data(), y.data());
  failures += JOIN(linear_backward, ISA)(kind, threads, batch, out, in, blocks, turned_blocks, own.pointer.data(),
                                         own.column.data(), turned.pointer.data(), turned.column.data(), order.data(),
                                         values.data(), x.data(), g.data(), gx.data(), gv.data(), gb.data());
  same("linear output", y, ey), same("linear input", gx, ex), same("linear values", gv, ev), same("linear bias", gb, eb);
}

template <class IO, class T = IO>
void convolution(int kind, int threads, int batch, const Conv& c, int percent) {
  int taps = c.taps(), rest = c.planes_in * taps, area = c.h.in * c.w.in, out_area = c.h.out * c.w.out;
  auto mask = places(size_t(c.planes_out) * rest, percent);
  auto own = index_of(mask, c.planes_out, rest, rest, [&](int o, int j) { return o * rest + j; });
  auto turned = index_of(mask, c.planes_in, c.planes_out * taps, c.planes_out * taps,
                         [&](int i, int j) { return j / taps * rest + i * taps + j % taps; });
  auto order = order_of(turned, own, mask.size());
  auto values = numbers<T>(own.at.size()), bias = numbers<T>(c.planes_out);
  auto x = numbers<IO>(size_t(batch) * c.planes_in * area), g = numbers<IO>(size_t(batch) * c.planes_out * out_area), y = g, gx = x;
  std::vector<T> gv(values.size()), gb(c.planes_out), ey(g.size()), ex(x.size()), ev(values.size());
  std::vector<T> eb(c.planes_out);
  for (int b = 0; b < batch; b++)
    for (int o = 0; o < c.planes_out; o++)
      for (int p = 0; p < out_area; p++) {
        size_t to = (size_t(b) * c.planes_out + o) * out_area + p;
        ey[to] += bias[o], eb[o] += to_real(g[to]);
        for (int k = own.pointer[o]; k < own.pointer[o + 1]; k++) {
          int tap = own.column[k] % taps, i = p / c.w.out * c.h.stride + tap / c.w.kernel - c.h.pad;
          int j = p % c.w.out * c.w.stride + tap % c.w.kernel - c.w.pad;
          if (i < 0 || j < 0 || i >= c.h.in || j >= c.w.in) continue;
          size_t from = (size_t(b) * c.planes_in + own.column[k] / taps) * area + i * c.w.in + j;
          T xk = to_real(x[from]), gk = to_real(g[to]);
          ey[to] += values[k] * xk, ex[from] += values[k] * gk, ev[k] += xk * gk;
        }
      }
  int size[] = {c.planes_in, c.planes_out, c.h.in, c.h.out, c.h.kernel, c.h.stride, c.h.pad,
                c.w.in, c.w.out, c.w.kernel, c.w.stride, c.w.pad};
  failures += JOIN(conv_forward, ISA)(kind, threads, batch, size, own.pointer.data(), own.column.data(), values.data(),
                                      bias.data(), x.data(), y.data());
  failures += JOIN(conv_backward, ISA)(kind, threads, batch, size, own.pointer.data(), own.column.data(),
                                       turned.pointer.data(), turned.column.data(), order.data(), values.data(), x.data(),
                                       g.data(), gx.data(), gv.data(), gb.data());
  same("conv output", y, ey), same("conv input", gx, ex), same("conv values", gv, ev), same("conv bias", gb, eb);
}

Axis axis(int in, int kernel, int stride, int pad) { return {in, (in + 2 * pad - kernel) / stride + 1, kernel, stride, pad}; }

}  // namespace

int main() {
  int runs = 0;
  for (int threads : {1, 2})
    for (int batch : {1, 2, 7, 9, 24, 33, 50, 64, 130, 600})
      for (int percent : {0, 10, 100}) {
        int out = 1 + int(random_bits() % 40), in = 1 + int(random_bits() % 40), block = random_bits() % 2 ? 2048 : 8;
        linear<float>(0, threads, batch, out, in, percent, block);
        linear<double>(1, threads, batch, out, in, percent, block);
        linear<bf16, float>(2, threads, batch, out, in, percent, block);
        runs += 3;
      }
  for (int kernel : {1, 2, 3, 5})
    for (int stride : {1, 2, 3})
      for (int pad = 0; pad < kernel; pad++)
        for (int percent : {0, 30, 100}) {
          int threads = 1 + int(random_bits() % 2), batch = 1 + int(random_bits() % 18);
          Conv c{1 + int(random_bits() % 5), 1 + int(random_bits() % 5), axis(5 + int(random_bits() % 15), kernel, stride, pad),
                 axis(5 + int(random_bits() % 15), kernel, stride, pad)};
          convolution<float>(0, threads, batch, c, percent);
          convolution<double>(1, threads, batch, c, percent);
          convolution<bf16, float>(2, threads, batch, c, percent);
          runs += 3;
        }
  std::printf("%d runs, %d failures\n", runs, failures);
  return failures != 0;
}
