/* From sums to int8 outputs. */
#include "internal.h"
#include "mve.h"

#if ENTROPI_MVE

void put(const row_scale *scale, const range *outputs, const int32_t *sums, uint32_t count, int8_t *to)
{
    for (int32_t left = (int32_t)count; left > 0; left -= FOUR, sums += FOUR, to += FOUR) {
        const mve_pred16_t lanes = vctp32q((uint32_t)left);
        vstrbq_p_s32(to, outputs_of(vldrwq_z_s32(sums, lanes), scale, outputs), lanes);
    }
}

#else

SPECIALISE void put_scaled(const row_scale *scale, int32_t zero_point, int divides, int32_t low, int32_t high,
                           const int32s *sums, uint32_t count, int8s *to)
{
    const int32_t multiplier = scale->multiplier;
    const int shift = scale->shift;
    const uint32_t half = divides ? 1u << (-shift - 1) : 0;
    for (const int32s *end = sums + count; sums != end;) {
        const int32s value = *sums++;
        const int32s scaled = divides ? divide_rounded(multiply_rounded(value, multiplier), half, -shift)
                                      : requantise(value, multiplier, shift);
        put_value(scaled, zero_point, low, high, to++);
    }
}

void put(const row_scale *scale, const range *outputs, const int32s *sums, uint32_t count, int8s *to)
{
    if (scale->shift < 0 && outputs->low == INT8_MIN && outputs->high == INT8_MAX) /* nearly always */
        put_scaled(scale, outputs->zero_point, 1, INT8_MIN, INT8_MAX, sums, count, to);
    else
        put_scaled(scale, outputs->zero_point, 0, outputs->low, outputs->high, sums, count, to);
}

#endif
