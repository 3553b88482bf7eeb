/* Several values of one image at once: four by the vector instructions (MVE, Helium) of a Cortex-M55, sixteen by the
 * compiler's vectors on a host. */
#ifndef ENTROPI_VECTORS_H
#define ENTROPI_VECTORS_H

#include "internal.h"

#if defined(__ARM_FEATURE_MVE) && !defined(ENTROPI_IMAGES)
#define ENTROPI_MVE 1
#include <arm_mve.h>

enum { FOUR = 4, SIXTEEN = 16 };
typedef int32x4_t fours;

/* x * 2^shift, shift <= 0, rounded half away from zero; what that takes off a negative x first is 1 if shift is not 0. */
static inline fours divided(fours x, int shift)
{
    const fours below = vreinterpretq_s32_u32(vshlq_r_u32(vreinterpretq_u32_s32(x), shift ? -31 : -32));
    return vrshlq_n_s32(vsubq_s32(x, below), shift);
}

/* requantise of each. multiplier >= 0, so that the doubled product never saturates. */
static inline fours requantise_fours(fours x, int32_t multiplier, int shift)
{
    if (shift >= 0)
        return vqrdmulhq_n_s32(vshlq_r_s32(x, shift), multiplier);
    return divided(vqrdmulhq_n_s32(x, multiplier), shift);
}

/* Outputs, as int32, of sums that hold the bias. */
static inline fours outputs_of(fours sums, const row_scale *scale, const range *outputs)
{
    const fours scaled = vaddq_n_s32(requantise_fours(sums, scale->multiplier, scale->shift), outputs->zero_point);
    return vminq_s32(vmaxq_s32(scaled, vdupq_n_s32(outputs->low)), vdupq_n_s32(outputs->high));
}

#else
#define ENTROPI_MVE 0
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && defined(__GNUC__) && !defined(ENTROPI_IMAGES) &&                  \
    !defined(ENTROPI_NO_VECTORS) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ENTROPI_HOST_VECTORS 1
enum { SIXTEEN = 16 };
#else
#define ENTROPI_HOST_VECTORS 0
#endif

#endif
