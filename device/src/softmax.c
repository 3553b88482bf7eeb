/* SOFTMAX over the channels of every position, after TFLM's integer kernel. Fixed point in the notation of gemmlowp:
 * Qm.n is an int32 with m bits before the point and n after it. */
#include "internal.h"

enum { SUM_BITS = 12, OUTPUT_BITS = 8 }; /* the sum of exponentials is Q12.19 */

/* The high half of 2ab, rounded half up. */
static int32_t multiply(int32_t a, int32_t b)
{
    const int64_t product = (int64_t)a * b;
    return (int32_t)((product + (product >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30))) / ((int64_t)1 << 31));
}

/* x / 2^n, rounded half away from zero */
static int32_t divide(int32_t x, int n)
{
    const int32_t mask = (int32_t)((1u << n) - 1u), rest = x & mask;
    return (x >> n) + (rest > (mask >> 1) + (x < 0));
}

static int32_t times_power(int32_t x, int n)
{
    const int64_t y = (int64_t)x * ((int64_t)1 << n);
    return y > INT32_MAX ? INT32_MAX : y < INT32_MIN ? INT32_MIN : (int32_t)y;
}

/* 1 / (1 + a) in Q0.31 for a in Q0.31 and 0 <= a < 1: three steps of Newton's method. */
static int32_t inverse_of_one_plus(int32_t a)
{
    const int32_t half = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2), one = 1 << 29;
    int32_t x = 1515870810 + multiply(half, -1010580540); /* 48/17 - 32/17 (1 + a) / 2 in Q2.29 */
    for (int i = 0; i < 3; i++)
        x += times_power(multiply(x, one - multiply(half, x)), 2);
    return times_power(x, 1);
}

/* One position: channel c is from[c * in_plane], and goes to to[c * out_plane]. */
static void softmax(const uint8_t *exponentials, const int8_t *from, uint32_t in_plane, int8_t *to, uint32_t out_plane,
                    uint32_t channels)
{
    int32_t largest = -128, sum = 0;
    for (uint32_t c = 0; c < channels; c++)
        largest = from[c * in_plane] > largest ? from[c * in_plane] : largest;
    for (uint32_t c = 0; c < channels; c++)
        sum += divide(load_i32(exponentials + 4 * (largest - from[c * in_plane])), SUM_BITS);
    int headroom = 0;
    while (!((uint32_t)sum << headroom & 0x80000000u))
        headroom++;
    const int32_t scale = inverse_of_one_plus((int32_t)(((uint32_t)sum << headroom) - 0x80000000u));
    const int right = SUM_BITS - headroom + 31 - OUTPUT_BITS;
    for (uint32_t c = 0; c < channels; c++) {
        const uint8_t below = (uint8_t)(largest - from[c * in_plane]); /* a hostile plan may let `to` change `from` */
        const int32_t share = multiply(scale, load_i32(exponentials + 4 * below));
        to[c * out_plane] = clamp_i8(divide(share, right) - 128, -128, 127);
    }
}

void run_softmax(const work *w)
{
    const tensor *in = &w->in, *out = &w->out;
    const uint8_t *exponentials = w->image + w->layer.parameters_at;
    for (uint32_t y = 0; y < out->height; y++)
        for (uint32_t x = 0; x < out->width; x++)
            for (uint32_t i = 0; i < IMAGES; i++)
                softmax(exponentials, (const int8_t *)(w->activations + interior(in) + y * in->pitch + x) + i,
                        in->plane * IMAGES, (int8_t *)(w->activations + interior(out) + y * out->pitch + x) + i,
                        out->plane * IMAGES, out->channels);
}
