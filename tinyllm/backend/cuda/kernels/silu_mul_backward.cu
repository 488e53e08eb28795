// silu_mul_backward: silu'(x) = s (1 + x (1 - s)) with s = sigmoid(x).
//
// in: T g, T gate, T up
// out: T g_gate, T g_up
// T: float32, float16, bfloat16
const float a = float(gate), s = 1.0f / (1.0f + expf(-a));
g_gate = T(float(g) * float(up) * s * (1.0f + a * (1.0f - s)));
g_up = T(float(g) * a * s);
