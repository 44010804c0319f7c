"""placeholder"""
class DensityLogger: pass
