/* From sums to int8 outputs. */
#include "internal.h"

SPECIALISE void put_scaled(const row_scale *scale, int32_t zero_point, int divides, int32_t low, int32_t high,
                           const int32_t *sums, uint32_t count, int8_t *to)
{
    const int32_t multiplier = scale->multiplier;
    const int shift = scale->shift;
    const uint32_t half = divides ? 1u << (-shift - 1) : 0;
    for (const int32_t *end = sums + count; sums != end;) {
        const int32_t value = *sums++;
        const int32_t scaled = divides ? divide_rounded(multiply_rounded(value, multiplier), half, -shift)
                                       : requantise(value, multiplier, shift);
        *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)zero_point), low, high);
    }
}

void put(const row_scale *scale, const range *outputs, const int32_t *sums, uint32_t count, int8_t *to)
{
    if (scale->shift < 0 && outputs->low == INT8_MIN && outputs->high == INT8_MAX) /* nearly always */
        put_scaled(scale, outputs->zero_point, 1, INT8_MIN, INT8_MAX, sums, count, to);
    else
        put_scaled(scale, outputs->zero_point, 0, outputs->low, outputs->high, sums, count, to);
}
