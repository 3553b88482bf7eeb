/* Max pools and additions on a core with vectors of four int32. */
#include "lines.h"

#if ENTROPI_MVE

/* Where the windows of a pool see the input, as positions in a plane, and what they see beyond. */
typedef struct {
    int32_t top, bottom, left, right;
    int8_t beyond;
} view;

/* The largest values in rows y0 to y1 - 1 of sixteen windows, `stride` apart, the first of which begins at `at`. */
static int8x16_t largest_of_sixteen(const layer *l, const view *v, const int8_t *plane, int32_t pitch, int32_t y0,
                                    int32_t y1, int32_t at)
{
    const int32_t stride = l->stride_w;
    const uint8x16_t offsets = vmulq_n_u8(vidupq_n_u8(0, 1), l->stride_w);
    int8x16_t value = vdupq_n_s8(y1 - y0 == l->kernel_h ? INT8_MIN : v->beyond);
    for (int32_t x = at; x < at + l->kernel_w; x++) {
        const uint32_t from = x < v->left ? (uint32_t)((v->left - x + stride - 1) / stride) : 0;
        const uint32_t end = x < v->right ? (uint32_t)((v->right - x + stride - 1) / stride) : 0;
        const mve_pred16_t inside = vctp8q(end) & (mve_pred16_t)~vctp8q(from);
        value = vpselq_s8(value, vmaxq_s8(value, vdupq_n_s8(v->beyond)), inside);
        const int8_t *column = plane + y0 * pitch + x;
        for (int32_t rows = y1 - y0; rows > 0; rows--, column += pitch)
            value = vmaxq_m_s8(value, value, vldrbq_gather_offset_z_s8(column, offsets, inside), inside);
    }
    return value;
}

/* MAX_POOL_2D. */
int run_usual_max_pool(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const int clipped = l->encoding == WINDOW_CLIPPED;
    const view v = {
        .top = clipped ? 0 : -in->top,
        .bottom = in->height + (clipped ? 0 : in->bottom),
        .left = clipped ? 0 : -in->left,
        .right = in->width + (clipped ? 0 : in->right),
        .beyond = clipped ? INT8_MIN : in->zero_point,
    };
    if ((SIXTEEN - 1) * l->stride_w > UINT8_MAX)
        return 0;
    const int8_t *plane = w->activations + interior(in);
    for (uint32_t c = 0; c < out->channels; c++, plane += in->plane)
        for (uint32_t y = 0; y < out->height; y++) {
            const int32_t at = (int32_t)(y * l->stride_h) - l->pad_top, end = at + l->kernel_h;
            const int32_t y0 = at < v.top ? v.top : at, y1 = end > v.bottom ? v.bottom : end;
            int8_t *to = w->activations + interior(out) + c * out->plane + y * out->pitch;
            int32_t x = -l->pad_left;
            for (int32_t left = out->width; left > 0; left -= SIXTEEN, to += SIXTEEN, x += SIXTEEN * l->stride_w) {
                const int8x16_t value = largest_of_sixteen(l, &v, plane, (int32_t)in->pitch, y0, y1, x);
                const int8x16_t held = vminq_s8(vmaxq_s8(value, vdupq_n_s8(l->low)), vdupq_n_s8(l->high));
                vstrbq_p_s8(to, held, vctp8q((uint32_t)left));
            }
        }
    return 1;
}

/* ADD of two tensors of one size, no scale of which is 1 or more. An operand's values on the common scale are (value -
 * zero point) * 2^ADD_HEADROOM_BITS, scaled. */
int run_usual_add(const work *w)
{
    const tensor *a = &w->in, *b = &w->second, *out = &w->out;
    const uint8_t *const scales = w->image + w->layer.parameters_at;
    const row_scale scale_a = scale_at(scales), scale_b = scale_at(scales + 8), to_out = scale_at(scales + 16);
    if (!same_size(a, out) || !same_size(b, out) || scale_a.shift > 0 || scale_b.shift > 0 || to_out.shift > 0)
        return 0;
    const layout all = plan_lines(a, b, out);
    const int32_t zero_a = a->zero_point, zero_b = b->zero_point, zero_out = out->zero_point;
    const fours low = vdupq_n_s32(w->layer.low), high = vdupq_n_s32(w->layer.high);
    for (uint32_t c = 0; c < all.planes; c++) {
        const int8_t *pa = w->activations + interior(a) + c * a->plane;
        const int8_t *pb = w->activations + interior(b) + c * b->plane;
        int8_t *to = w->activations + interior(out) + c * out->plane;
        for (uint32_t lines = all.lines; lines; lines--, pa += a->pitch, pb += b->pitch, to += out->pitch)
            for (int32_t i = 0, left = (int32_t)all.length; left > 0; i += FOUR, left -= FOUR) {
                const mve_pred16_t lanes = vctp32q((uint32_t)left);
                const fours x = vshlq_n_s32(vsubq_n_s32(vldrbq_z_s32(pa + i, lanes), zero_a), ADD_HEADROOM_BITS);
                const fours y = vshlq_n_s32(vsubq_n_s32(vldrbq_z_s32(pb + i, lanes), zero_b), ADD_HEADROOM_BITS);
                const fours sum = vaddq_s32(divided(vqrdmulhq_n_s32(x, scale_a.multiplier), scale_a.shift),
                                            divided(vqrdmulhq_n_s32(y, scale_b.multiplier), scale_b.shift));
                const fours scaled = divided(vqrdmulhq_n_s32(sum, to_out.multiplier), to_out.shift);
                vstrbq_p_s32(to + i, vminq_s32(vmaxq_s32(vaddq_n_s32(scaled, zero_out), low), high), lanes);
            }
    }
    return 1;
}
#endif
