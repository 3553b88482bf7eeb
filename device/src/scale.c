/* From sums to int8 outputs. */
#include "internal.h"

void put(const row_scale *scale, const range *outputs, const int32_t *sums, uint32_t count, int8_t *to)
{
    const int32_t *const end = sums + count;
    if (is_usual(scale, outputs)) {
        const usual_scale s = usual_of(scale, outputs);
        while (sums != end)
            *to++ = usual_output(*sums++, &s);
        return;
    }
    while (sums != end) {
        const int32_t scaled = requantise(*sums++, scale->multiplier, scale->shift);
        *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)outputs->zero_point), outputs->low, outputs->high);
    }
}
