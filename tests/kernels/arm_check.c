/* Checks the native products against plain loops; built for another processor and run under its emulator. */
#include <stdio.h>

#include "../../kernels/cpu/native.c"

enum { ROWS = 70, OUTPUTS = 45, INPUTS = 96, GROUP = 32 };

static uint32_t state = 1;
static float noise(void) {
    state = state * 1664525 + 1013904223;
    return (float)(int32_t)state / 2147483648.0f;
}

static float x[ROWS * INPUTS], out[ROWS * OUTPUTS], alone[OUTPUTS], dense[OUTPUTS * INPUTS], bias[64];
static float values[OUTPUTS * INPUTS];
static uint32_t panels[2 * INPUTS * PANEL];
static uint16_t scales[OUTPUTS * 3], offsets[OUTPUTS * 3], packed_scales[2 * 3 * PANEL], packed_offsets[2 * 3 * PANEL];

/* Inputs as a product of this kind sees them. */
static float seen(int kind, int r, int k) {
    const float *row = x + r * INPUTS + k / BLOCK * BLOCK;
    float value = x[r * INPUTS + k], most = 0;
    if (kind == KIND_BF16) {
        const uint32_t bits = bf16_bits_4(value) << 16;
        memcpy(&value, &bits, 4);
    }
    if (kind < KIND_INT8) return value;
    for (int i = 0; i < BLOCK; i++) most = MAX(most, fabsf(row[i]));
    return rintf(value * (127 / most)) * (most / 127);
}

static int wrong(int kind, int shifted) {
    const int integers = kind >= KIND_INT8;
    for (int i = 0; i < OUTPUTS * INPUTS; i++) values[i] = noise();
    if (integers) { /* any bytes are a weight */
        for (int i = 0; i < OUTPUTS * INPUTS; i++) ((uint8_t *)values)[i] = (uint8_t)(noise() * 128 + 128);
        for (int i = 0; i < OUTPUTS * 3; i++) scales[i] = to_half_4(noise()), offsets[i] = to_half_4(noise());
    } else if (kind == KIND_BF16) {
        for (int i = 0; i < OUTPUTS * INPUTS; i++) ((uint16_t *)values)[i] = (uint16_t)bf16_bits_4(values[i]);
    }
    Packing packing = {values, integers ? scales : NULL, shifted ? offsets : NULL, panels, packed_scales, packed_offsets,
                       INPUTS, OUTPUTS, kind, GROUP};
    Product product = {panels, bias, packed_scales, shifted ? packed_offsets : NULL, INPUTS, OUTPUTS, kind, GROUP};
    int bad = bw_pack(&packing) != 0;
    int64_t ids[OUTPUTS];
    for (int n = 0; n < OUTPUTS; n++) ids[n] = n;
    bad += bw_weight_rows(&product, ids, dense, OUTPUTS) != 0;
    for (int n = 0; n < OUTPUTS; n++) /* the packed weight against the one that was given */
        for (int k = 0; k < INPUTS; k++) {
            const int i = n * INPUTS + k, g = n * 3 + k / GROUP;
            float value = values[i];
            if (kind == KIND_BF16) value = load1_4(values, i, 1);
            if (kind == KIND_INT8) value = ((int8_t *)values)[i];
            if (kind == KIND_INT4) value = (float)((((uint8_t *)values)[i / 2] >> i % 2 * 4 & 15) - (shifted ? 0 : 8));
            if (integers) value = value * half_4(scales[g]) + (shifted ? half_4(offsets[g]) : 0);
            bad += fabsf(value - dense[i]) > 1e-4f;
        }
    bad += bw_linear(&product, x, out, ROWS, 0) != 0;
    for (int r = 0; r < ROWS; r++) {
        bw_linear(&product, x + r * INPUTS, alone, 1, 0);
        bad += memcmp(alone, out + r * OUTPUTS, sizeof alone) != 0;
        for (int n = 0; n < OUTPUTS; n++) {
            double sum = bias[n], size = 1;
            for (int k = 0; k < INPUTS; k++) {
                const double part = (double)seen(kind, r, k) * dense[n * INPUTS + k];
                sum += part;
                size += fabs(part);
            }
            bad += !(fabs(sum - out[r * OUTPUTS + n]) < 1e-5 * size);
        }
    }
    return bad;
}

int main(void) {
    int bad = 0;
    for (int i = 0; i < ROWS * INPUTS; i++) x[i] = noise();
    for (int n = 0; n < OUTPUTS; n++) bias[n] = noise();
    for (int kind = KIND_F32; kind <= KIND_INT4; kind++)
        for (int shifted = 0; shifted <= (kind >= KIND_INT8); shifted++) {
            const int found = wrong(kind, shifted);
            if (found) printf("kind %d, offsets %d: %d differences\n", kind, shifted, found);
            bad += found;
        }
    return bad != 0;
}
