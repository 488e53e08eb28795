// adamw_step: one AdamW update in one pass, in place: 28 bytes of memory traffic a parameter instead of some 150.
//
// The numbers of a step are computed on the host: keep = 1 - lr * weight_decay, b1 = 1 - beta1, b2 = 1 - beta2,
// root = sqrt(1 - beta2^step), rate = lr / (1 - beta1^step).
//
// in: T g, float32 keep, float32 b1, float32 beta2, float32 b2, float32 root, float32 eps, float32 rate
// out: T w, T m, T v
// T: float32
m += b1 * (g - m);
v = beta2 * v + b2 * (g * g);
w = w * keep - rate * (m / (sqrtf(v) / root + eps));
