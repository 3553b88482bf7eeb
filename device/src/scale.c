/* From sums to int8 outputs. */
#include "internal.h"
#include "vectors.h"

void put(const row_scale *scale, const range *outputs, const int32s *sums, uint32_t count, int8s *to)
{
#if ENTROPI_MVE
    if (count >= FOUR) {
        for (int32_t left = (int32_t)count; left > 0; left -= FOUR, sums += FOUR, to += FOUR) {
            const mve_pred16_t lanes = vctp32q((uint32_t)left);
            vstrbq_p_s32(to, outputs_of(vldrwq_z_s32(sums, lanes), scale, outputs), lanes);
        }
        return;
    }
#endif
    const int32s *const end = sums + count;
#if !defined(ENTROPI_IMAGES)
    if (is_usual(scale, outputs)) {
        const usual_scale s = usual_of(scale, outputs);
        while (sums != end)
            *to++ = usual_output(*sums++, &s);
        return;
    }
#endif
    while (sums != end)
        put_value(requantise(*sums++, scale->multiplier, scale->shift), outputs->zero_point, outputs->low,
                  outputs->high, to++);
}
