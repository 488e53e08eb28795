// gelu: x Phi(x), through erf, or by GPT-2's tanh formula.
//
// in: T x, int32 approximate
// out: T y
// T: float32, float16, bfloat16
const float a = float(x);
const float cdf2 = 1.0f + (approximate ? tanhf(0.7978845608f * (a + 0.044715f * a * a * a)) : erff(a * 0.7071067812f));
y = T(0.5f * a * cdf2);
