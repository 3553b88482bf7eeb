/* Pooling and elementwise layers, each after the TFLM operator it names. */
#include "internal.h"
#include "lines.h"

/* Channel by channel: an output may lie over an input, each of its channels before the input's of the same number.
 * Padding takes part as the zero point, as after an explicit PAD, be it in a border or beyond it, or, where the windows
 * are clipped, not at all. */
SPECIALISE void pool(const work *w, int average)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    int8s *activations = w->activations;
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

/* MAX_POOL_2D and AVERAGE_POOL_2D. */
void run_max_pool(const work *w)
{
    if (IMAGES > 1 || !run_usual_max_pool(w))
        pool(w, 0);
}

void run_average_pool(const work *w) { pool(w, 1); }

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

enum { PART = 64 };

/* What a layer makes of neighbouring values of its operands, before the output's scale. */
typedef void combine(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                     int32s *sums, uint32_t count);

/* An output may lie over an input, as close before it as the plan allows: the elementwise kernels therefore go from the
 * first address to the last, and read a value before they write the one that may replace it. */
static void elementwise(const work *w, const uint8_t *to_out, combine *combined)
{
    const tensor *a = &w->in, *b = &w->second, *out = &w->out;
    const uint8_t *scales = w->image + w->layer.parameters_at;
    const row_scale scale = scale_at(to_out);
    const range outputs = range_of(&w->layer, out);
    const operand first = spread(a, out, w->activations), second = spread(b, out, w->activations);
    const layout all = plan_lines(a, b, out);
    int32s sums[PART];
    for (uint32_t c = 0; c < all.planes; c++)
        for (uint32_t y = 0; y < all.lines; y++) {
            const int8s *pa = first.values + c * first.plane + y * first.pitch;
            const int8s *pb = second.values + c * second.plane + y * second.pitch;
            int8s *to = w->activations + interior(out) + c * out->plane + y * out->pitch;
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

static void product(const uint8_t *scales, const operand *a, const operand *b, const int8s *pa, const int8s *pb,
                    int32s *sums, uint32_t count)
{
    (void)scales;
    const int32_t zero_a = a->zero_point, zero_b = b->zero_point;
    for (const int32s *end = sums + count; sums != end; pb += b->step)
        *sums++ = (widened(pa++) - zero_a) * (widened(pb) - zero_b);
}

/* ADD and SUB: both inputs are brought to a common scale. MUL needs none. */
void run_add(const work *w)
{
    if (IMAGES > 1 || !run_usual_add(w))
        elementwise(w, w->image + w->layer.parameters_at + 16, sum);
}

void run_sub(const work *w) { elementwise(w, w->image + w->layer.parameters_at + 16, difference); }
void run_mul(const work *w) { elementwise(w, w->image + w->layer.parameters_at, product); }

/* Every operator of one int8 input alone, as the table of what it makes of -128, -127, ... 127. */
void run_table(const work *w)
{
    const tensor *in = &w->in, *out = &w->out;
    const int8_t *table = (const int8_t *)w->image + w->layer.parameters_at + 128;
    for (uint32_t c = 0; c < out->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8_t *from = (const int8_t *)(w->activations + interior(in) + c * in->plane + y * in->pitch);
            int8_t *to = (int8_t *)(w->activations + interior(out) + c * out->plane + y * out->pitch);
            for (const int8_t *end = to + (uint32_t)out->width * IMAGES; to != end;)
                *to++ = table[*from++];
        }
}

/* One input of CONCATENATION, from channel `second` of the output on. The plan may have put it there already. */
void run_copy(const work *w)
{
    const tensor *in = &w->in, *out = &w->out;
    const uint32_t there = interior(out) + w->layer.second * out->plane;
    if (interior(in) == there && in->pitch == out->pitch && in->plane == out->plane)
        return;
    for (uint32_t c = 0; c < in->channels; c++)
        for (uint32_t y = 0; y < out->height; y++) {
            const int8s *from = w->activations + interior(in) + c * in->plane + y * in->pitch;
            int8s *to = w->activations + there + c * out->plane + y * out->pitch;
            for (const int8s *end = to + out->width; to != end;)
                *to++ = *from++;
        }
}

/* MEAN over height and width. */
void run_mean(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const row_scale scale = scale_at(w->image + l->parameters_at);
    const int32_t count = (int32_t)in->height * in->width;
    for (uint32_t c = 0; c < out->channels; c++) {
        const int8s *row = w->activations + interior(in) + c * in->plane;
        int32s sum = in_all(0);
        for (uint32_t y = 0; y < in->height; y++, row += in->pitch)
            for (uint32_t x = 0; x < in->width; x++)
                sum += widened(row + x);
        const int32s scaled = requantise(sum - count * in->zero_point, scale.multiplier, scale.shift);
        put_value(scaled, out->zero_point, l->low, l->high, w->activations + interior(out) + c * out->plane);
    }
}
