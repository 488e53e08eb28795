// nf4_unpack_v1: weights from four-bit codes, one thread a weight. The version to read.
//
// Two codes share a byte, the even weight's in the high nibble; `block` weights in a row share a scale.
//
// in: raw uint8 packed, raw float32 absmax, raw float32 level, int32 block
// out: T y
// T: float32, float16, bfloat16
// exact
const unsigned char pair = packed[i / 2];
const int code = i % 2 ? pair & 15 : pair >> 4;
y = T(__fmul_rn(level[code], absmax[i / block]));  // rounded to float32, and then to T
