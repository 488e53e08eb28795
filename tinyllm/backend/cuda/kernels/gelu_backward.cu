// gelu_backward: Phi(x) + x phi(x), or the derivative of the tanh formula.
//
// in: T g, T x, int32 approximate
// out: T gx
// T: float32, float16, bfloat16
const float a = float(x);
float slope;
if (approximate) {
    const float t = tanhf(0.7978845608f * (a + 0.044715f * a * a * a));
    slope = 0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * a * a);
} else {
    slope = 0.5f * (1.0f + erff(a * 0.7071067812f)) + a * expf(-0.5f * a * a) * 0.3989422804f;
}
gx = T(float(g) * slope);
