/* Pooling and elementwise layers, each after the TFLM operator it names. */
#include "internal.h"
#include "mve.h"

#if ENTROPI_MVE
/* The largest values of four neighbouring windows inside the input, the first of which begins at `corner`. */
static fours largest_of_fours(const layer *l, const int8_t *corner, uint32_t pitch)
{
    const uint32x4_t offsets = vmulq_n_u32(vidupq_n_u32(0, 1), l->stride_w);
    fours value = vdupq_n_s32(INT8_MIN);
    for (uint32_t rows = l->kernel_h; rows--; corner += pitch)
        for (uint32_t x = 0; x < l->kernel_w; x++)
            value = vmaxq_s32(value, vldrbq_gather_offset_s32(corner + x, offsets));
    return vminq_s32(vmaxq_s32(value, vdupq_n_s32(l->low)), vdupq_n_s32(l->high));
}
#endif

/* Channel by channel: an output may lie over an input, each of its channels before the input's of the same number. */
SPECIALISE void pool(const layer *l, const tensor *in, const tensor *out, int8s *activations, int average)
{
    const int clipped = l->encoding == WINDOW_CLIPPED;
    const int32_t top = clipped ? 0 : -in->top, bottom = in->height + (clipped ? 0 : in->bottom);
    const int32_t left = clipped ? 0 : -in->left, right = in->width + (clipped ? 0 : in->right);
    const int32_t whole = l->kernel_h * l->kernel_w, pitch = (int32_t)in->pitch;
    const int8s *plane = activations + interior(in);
    for (uint32_t c = 0; c < out->channels; c++, plane += in->plane)
        for (uint32_t y = 0; y < out->height; y++) {
            const int32_t y_at = (int32_t)(y * l->stride_h) - l->pad_top, y_end = y_at + l->kernel_h;
            const int32_t y0 = y_at < top ? top : y_at, y1 = y_end > bottom ? bottom : y_end;
            int8s *to = activations + interior(out) + c * out->plane + y * out->pitch;
            int32_t x_at = -l->pad_left;
            for (const int8s *last = to + out->width; to != last; x_at += l->stride_w) {
#if ENTROPI_MVE
                const int32_t back = last - to < FOUR ? FOUR - (int32_t)(last - to) : 0; /* outputs written twice */
                const int32_t first = x_at - back * l->stride_w, fourth = first + (FOUR - 1) * l->stride_w;
                if (!average && out->width >= FOUR && y1 - y0 == l->kernel_h && first >= left &&
                    fourth + l->kernel_w <= right) {
                    vstrbq_s32(to - back, largest_of_fours(l, plane + y0 * pitch + first, in->pitch));
                    to += FOUR - back, x_at = fourth;
                    continue;
                }
#endif
                const int32_t x_end = x_at + l->kernel_w;
                const int32_t x0 = x_at < left ? left : x_at, x1 = x_end > right ? right : x_end;
                const int32_t inside = y0 < y1 && x0 < x1 ? (y1 - y0) * (x1 - x0) : 0;
                const int32_t outside = clipped ? 0 : whole - inside;
                int32s value = in_all(average ? outside * in->zero_point : outside ? in->zero_point : -128);
                const int8s *line = plane + y0 * pitch + x0;
                for (int32_t rows = inside ? y1 - y0 : 0; rows--; line += pitch)
                    for (const int8s *from = line, *end = line + (x1 - x0); from != end; from++)
                        value = average ? value + widened(from) : larger(value, widened(from));
                if (average) {
                    const int32_t count = clipped ? inside : whole;
                    value = (value + choose(value > 0, in_all(count / 2), in_all(-(count / 2)))) / count;
                }
                put_value(value, 0, l->low, l->high, to++);
            }
        }
}

static void max_pool(const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    pool(l, in, out, activations, 0);
}

static void average_pool(const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    pool(l, in, out, activations, 1);
}

/* MAX_POOL_2D and AVERAGE_POOL_2D. Padding takes part as the zero point, as after an explicit PAD, be it in a border or
 * beyond it, or, where the windows are clipped, not at all. */
void run_pool(const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    (l->kind == LAYER_MAX_POOL ? max_pool : average_pool)(l, in, out, activations);
}

/* An operand of an elementwise layer, spread over the axes along which it has one value. */
typedef struct {
    const int8s *values;
    uint32_t plane, pitch, step;
    int32_t zero_point;
} operand;

static operand spread(const tensor *t, const tensor *out, const int8s *activations)
{
    return (operand){
        .values = activations + interior(t),
        .plane = t->channels == out->channels ? t->plane : 0,
        .pitch = t->height == out->height ? t->pitch : 0,
        .step = t->width == out->width,
        .zero_point = t->zero_point,
    };
}

/* How the values of all tensors of a layer lie beside each other: so many lines of one length in so many planes. Rows
 * of one pitch are one line; what is made of the borders between them goes into the output's, which is written anew. */
typedef struct {
    uint32_t planes, lines, length;
} layout;

static layout plan_lines(const tensor *a, const tensor *b, const tensor *out)
{
    const uint32_t channels = out->channels, height = out->height, width = out->width;
    if (b->height != height || b->width != width || a->pitch != out->pitch || b->pitch != out->pitch)
        return (layout){channels, height, width};
    const uint32_t values = height * width;
    if (b->channels == channels && a->plane == values && b->plane == values && out->plane == values)
        return (layout){1, 1, channels * values};
    const uint32_t length = (height - 1u) * out->pitch + width;
    if (ENTROPI_MVE && b->channels == channels && a->plane == out->plane && b->plane == out->plane)
        return (layout){1, 1, (channels - 1u) * out->plane + length}; /* vectors are faster over borders than around */
    return (layout){channels, 1, length};
}

static row_scale load_scale(const uint8_t *p)
{
    return (row_scale){.multiplier = load_i32(p), .shift = load_i32(p + 4)};
}

enum { PART = 64 };

/* What a layer makes of neighbouring values of its operands, before the output's scale. */
typedef void combine(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                     int32s *sums, uint32_t count);

/* An output may lie over an input, as close before it as the plan allows: the elementwise kernels therefore go from the
 * first address to the last, and read a value before they write the one that may replace it. */
static void elementwise(const layer *l, const tensor *a, const tensor *b, const tensor *out, int8s *activations,
                        const uint8_t *scales, const uint8_t *to_out, combine *combined)
{
    const row_scale scale = load_scale(to_out);
    const range outputs = range_of(l, out);
    const operand first = spread(a, out, activations), second = spread(b, out, activations);
    const layout all = plan_lines(a, b, out);
    int32s sums[PART];
    for (uint32_t c = 0; c < all.planes; c++)
        for (uint32_t y = 0; y < all.lines; y++) {
            const int8s *pa = first.values + c * first.plane + y * first.pitch;
            const int8s *pb = second.values + c * second.plane + y * second.pitch;
            int8s *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (uint32_t left = all.length, count; left; left -= count) {
                count = left < PART ? left : PART;
                combined(scales, &first, &second, pa, pb, sums, count);
                put(&scale, &outputs, sums, count, to);
                pa += count, pb += count * second.step, to += count;
            }
        }
}

/* What a term of a sum is: the first, or added with a sign. Unsigned: a hostile image may make these sums wrap. */
enum { FIRST, PLUS, MINUS };

#if ENTROPI_MVE

/* An operand's values on the common scale, four at a time. */
static inline fours term_of(const operand *k, const row_scale *scale, const int8_t *from, mve_pred16_t lanes)
{
    const fours x = k->step ? vldrbq_z_s32(from, lanes) : vdupq_n_s32(*from);
    const fours value = vshlq_n_s32(vsubq_n_s32(x, k->zero_point), ADD_HEADROOM_BITS);
    return requantise_fours(value, scale->multiplier, scale->shift);
}

void run_add(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations)
{
    const uint8_t *p = image + l->parameters_at;
    const row_scale scale_a = load_scale(p), scale_b = load_scale(p + 8), scale = load_scale(p + 16);
    const range outputs = range_of(l, out);
    const operand first = spread(a, out, activations), second = spread(b, out, activations);
    const layout all = plan_lines(a, b, out);
    for (uint32_t c = 0; c < all.planes; c++)
        for (uint32_t y = 0; y < all.lines; y++) {
            const int8_t *pa = first.values + c * first.plane + y * first.pitch;
            const int8_t *pb = second.values + c * second.plane + y * second.pitch;
            int8_t *to = activations + interior(out) + c * out->plane + y * out->pitch;
            for (int32_t left = (int32_t)all.length; left > 0; left -= FOUR) {
                const mve_pred16_t lanes = vctp32q((uint32_t)left);
                const fours ta = term_of(&first, &scale_a, pa, lanes), tb = term_of(&second, &scale_b, pb, lanes);
                const fours sum = l->kind == LAYER_SUB ? vsubq_s32(ta, tb) : vaddq_s32(ta, tb);
                vstrbq_p_s32(to, outputs_of(sum, &scale, &outputs), lanes);
                pa += FOUR, pb += FOUR * second.step, to += FOUR;
            }
        }
}

#else

SPECIALISE void add_values(const operand *k, int32_t multiplier, int shift, int is_half, const int8s *from,
                           uint32_t step, int role, int32s *sums, uint32_t count)
{
    const int32_t zero_point = k->zero_point;
    for (const int32s *end = sums + count; sums != end; from += step, sums++) {
        const int32s value = (widened(from) - zero_point) * (1 << ADD_HEADROOM_BITS);
        const uint32s term = (uint32s)(is_half ? value >> 1 : requantise(value, multiplier, shift));
        const uint32s before = role == FIRST ? (uint32s)in_all(0) : (uint32s)*sums;
        *sums = (int32s)(role == MINUS ? before - term : before + term);
    }
}

/* A line of one operand on the common scale, which has ADD_HEADROOM_BITS more bits. */
SPECIALISE void add_term(const uint8_t *scale, const operand *k, const int8s *from, uint32_t step, int role,
                         int32s *sums, uint32_t count)
{
    const int32_t multiplier = load_i32(scale), shift = load_i32(scale + 4);
    if (multiplier == 1 << 30 && shift == 0) /* of the two, the operand of the larger scale */
        add_values(k, multiplier, shift, 1, from, step, role, sums, count);
    else
        add_values(k, multiplier, shift, 0, from, step, role, sums, count);
}

static void sum(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                int32s *sums, uint32_t count)
{
    add_term(scales, a, pa, 1, FIRST, sums, count);
    add_term(scales + 8, b, pb, b->step, PLUS, sums, count);
}

static void difference(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                       int32s *sums, uint32_t count)
{
    add_term(scales, a, pa, 1, FIRST, sums, count);
    add_term(scales + 8, b, pb, b->step, MINUS, sums, count);
}

/* ADD and SUB: both inputs are brought to a common scale. */
void run_add(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8s *activations)
{
    const uint8_t *p = image + l->parameters_at;
    elementwise(l, a, b, out, activations, p, p + 16, l->kind == LAYER_SUB ? difference : sum);
}

#endif

static void product(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                    int32s *sums, uint32_t count)
{
    (void)scales;
    const int32_t zero_a = a->zero_point, zero_b = b->zero_point;
    for (const int32s *end = sums + count; sums != end; pb += b->step)
        *sums++ = (widened(pa++) - zero_a) * (widened(pb) - zero_b);
}

/* MUL */
void run_mul(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8s *activations)
{
    const uint8_t *p = image + l->parameters_at;
    elementwise(l, a, b, out, activations, NULL, p, product);
}

/* Every operator of one int8 input alone, as the table of what it makes of -128, -127, ... 127. */
void run_table(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    const int8_t *table = (const int8_t *)image + l->parameters_at + 128;
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *from = (const int8_t *)(activations + interior(in) + c * in->plane + y * in->pitch);
            int8_t *to = (int8_t *)(activations + interior(out) + c * out->plane + y * out->pitch);
            for (const int8_t *end = to + (uint32_t)out->width * IMAGES; to != end;)
                *to++ = table[*from++];
        }
}

/* One input of CONCATENATION, from channel `second` of the output on. The plan may have put it there already. */
void run_copy(const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    if (interior(in) == interior(out) + l->second * out->plane && in->pitch == out->pitch && in->plane == out->plane)
        return;
    for (uint32_t c = 0; c < in->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8s *from = activations + interior(in) + c * in->plane + y * in->pitch;
            int8s *to = activations + interior(out) + (l->second + c) * out->plane + y * out->pitch;
            for (const int8s *end = to + out->width; to != end;)
                *to++ = *from++;
        }
}

/* MEAN over height and width. */
void run_mean(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8s *activations)
{
    const int32_t multiplier = load_i32(image + l->parameters_at), shift = load_i32(image + l->parameters_at + 4);
    const int32_t count = (int32_t)in->height * in->width;
    for (uint32_t c = 0; c < out->channels; c++) {
        const int8s *row = activations + interior(in) + c * in->plane;
        int32s sum = in_all(0);
        for (uint32_t y = 0; y < in->height; y++, row += in->pitch)
            for (uint32_t x = 0; x < in->width; x++)
                sum += widened(row + x);
        const int32s scaled = requantise(sum - count * in->zero_point, multiplier, shift);
        put_value(scaled, out->zero_point, l->low, l->high, activations + interior(out) + c * out->plane);
    }
}
