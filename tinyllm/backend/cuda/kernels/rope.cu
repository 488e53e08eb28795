// rope: rotate the pairs (j, j + half) of every head by its position's angle. One thread a pair.
//
// x is (batch, heads, time, 2 half) in any layout, y the same shape; cos and sin are (batch or 1, 1, time, half).
//
// in: raw T x, raw float32 cos, raw float32 sin, int32 heads, int32 time, int32 half_n, int32 tables
// out: raw T y
// T: float32, float16, bfloat16
const long long row = i / half_n;
const int j = i % half_n;
const long long table = (tables > 1 ? row / ((long long)heads * time) : 0) * time + row % time;
const float c = cos[table * half_n + j], s = sin[table * half_n + j];
const float a = float(x[2 * row * half_n + j]), b = float(x[(2 * row + 1) * half_n + j]);
y[2 * row * half_n + j] = T(a * c - b * s);
y[(2 * row + 1) * half_n + j] = T(b * c + a * s);
