/* One instruction set's build of every kernel: included by native.c once per vector width (VW, NAME). */
#define vf NAME(vector_f)
#define vi NAME(vector_i)
#define vu NAME(vector_u)
#define vh NAME(vector_h)
#define vb NAME(vector_b)
#include "native_vector.c"
#include "native_kv.c"
#include "native_attention.c"
#include "native_fused.c"
#include "native_sample.c"
#include "native_pack.c"
#include "native_quantize.c"
#include "native_int.c"
#include "native_product.c"
#include "native_rows.c"
#include "native_stack.c"
#include "native_probe.c"
#undef vf
#undef vi
#undef vu
#undef vh
#undef vb
#undef ZIP_LOW
#undef ZIP_HIGH
#undef LANES
