// nf4_scales: the scales of doubly quantised NF4, map[code] * nested[block of 256] + offset, rounded twice.
//
// in: raw uint8 codes, raw float32 nested, raw float32 map, float32 offset
// out: float32 y
// exact
y = __fadd_rn(__fmul_rn(map[codes[i]], nested[i / 256]), offset);
