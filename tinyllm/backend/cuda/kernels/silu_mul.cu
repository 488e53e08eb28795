// silu_mul: silu(gate) * up, the middle of SwiGLU.
//
// in: T gate, T up
// out: T y
// T: float32, float16, bfloat16
const float a = float(gate);
y = T(a / (1.0f + expf(-a)) * float(up));  // e^-a may overflow to infinity, and a / infinity is the right zero
