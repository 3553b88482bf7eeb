#include "head.h"

typedef union {
    float value;
    uint32_t bits;
} float_bits;

float exp_negative(float x)
{
    if (!(x > -87.0f))
        return 0.0f;
    /* x = k ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that k * 0.693359375 is exact. */
    const int32_t k = (int32_t)(x * 1.44269504f - 0.5f);
    const float r = (x - (float)k * 0.693359375f) - (float)k * -2.12194440e-4f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float_bits scale = {.bits = (uint32_t)(k + 127) << 23};
    return p * scale.value;
}

float log_above_one(float x)
{
    float_bits m = {.value = x};
    int32_t e = (int32_t)(m.bits >> 23) - 127;
    m.bits = (m.bits & 0x007FFFFFu) | 0x3F800000u;
    if (m.value > 1.41421354f) {
        m.value *= 0.5f;
        e++;
    }
    /* log m = 2 atanh(s), |s| <= 0.172 */
    const float s = (m.value - 1.0f) / (m.value + 1.0f), s2 = s * s;
    float p = 1.0f / 9.0f;
    p = p * s2 + 1.0f / 7.0f;
    p = p * s2 + 1.0f / 5.0f;
    p = p * s2 + 1.0f / 3.0f;
    p = p * s2 + 1.0f;
    return (float)e * 0.693147182f + 2.0f * s * p;
}
