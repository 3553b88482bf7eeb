/* DEPTHWISE_CONV_2D with dense weights: an output channel reads one input channel. Outputs are computed four of a row
 * at once; where windows reach beyond the border, the channel's inputs are first copied, a band of rows at a time,
 * between zero points. Maps less than four wide go by a list of products, the same for all channels. */
#include "dsp.h"
#include "rows.h"
#include "windows.h"

/* Output positions of a tile; weights of a kernel row in a step, and steps that a kernel may take. */
enum { TILE = 4, AT_ONCE = ENTROPI_DSP ? 4 : 1, MAX_STEPS = ENTROPI_DSP ? 16 : 25, BAND_BYTES = GATHERED_WORDS * 4 };

typedef struct {
    const int8_t *input; /* first value of the first window */
    uint32_t in_pitch, pitch, height, width; /* all but the first of the output */
    axis down, across;
    range outputs;
    int8_t zero_point;
    uint32_t steps;      /* of a kernel row */
    uint32_t band_pitch; /* what the windows of an output row take, up to their last step */
    uint32_t band_rows;  /* output rows whose inputs fit into a band */
    int8_t *band;
} plane;

/* Weights of a kernel row, zeros behind the last one, and how far their first input lies from the window's corner. */
typedef struct {
#if ENTROPI_DSP
    uint32_t even, odd; /* the first and third, the second and fourth, 16 bits each */
#else
    int32_t weight;
#endif
    uint32_t offset;
} step;

typedef struct {
    step kernel[MAX_STEPS];
    const step *end;
    row_scale scale;
    usual_scale usual; /* where the scale is usual */
    int is_usual;
} channel;

/* The channel's weights, whose inputs lie in rows `down` apart. A kernel row is read up to its last step. */
static void read_kernel(const plane *p, const int8_t *weights, uint32_t down, channel *k)
{
    step *to = k->kernel;
    for (uint32_t ky = 0; ky < p->down.taps; ky++, weights += p->across.taps)
        for (uint32_t kx = 0; kx < p->across.taps; kx += AT_ONCE, to++) {
#if ENTROPI_DSP
            const uint32_t left = p->across.taps - kx;
            const uint32_t four = load_u32((const uint8_t *)weights + kx) & (left < 4 ? (1u << 8u * left) - 1u : ~0u);
            to->even = even_bytes(four), to->odd = odd_bytes(four);
#else
            to->weight = weights[kx];
#endif
            to->offset = ky * down + kx;
        }
    k->end = to;
}

/* Add the products of a step to the sums of four positions; x is the first input of the first position. */
SPECIALISE void add_step(const step *w, const int8_t *x, uint32_t stride, int32_t *s)
{
#if ENTROPI_DSP
    const uint8_t *bytes = (const uint8_t *)x;
    const uint32_t even = w->even, odd = w->odd, a = load_u32(bytes);
    s[0] = multiply_halves(even_bytes(a), even, s[0]);
    if (stride == 1) {
        const uint32_t a1 = odd_bytes(a), c = load_u32(bytes + 2), c0 = even_bytes(c);
        s[0] = multiply_halves(a1, odd, s[0]);
        s[1] = multiply_halves(c0, odd, multiply_halves(a1, even, s[1]));
        const uint32_t c1 = odd_bytes(c), d = odd_bytes(load_u32(bytes + 3));
        s[2] = multiply_halves(c1, odd, multiply_halves(c0, even, s[2]));
        s[3] = multiply_halves(d, odd, multiply_halves(c1, even, s[3]));
        return;
    }
    s[0] = multiply_halves(odd_bytes(a), odd, s[0]);
    const uint32_t b = load_u32(bytes + stride);
    s[1] = multiply_halves(odd_bytes(b), odd, multiply_halves(even_bytes(b), even, s[1]));
    const uint32_t c = load_u32(bytes + 2 * stride);
    s[2] = multiply_halves(odd_bytes(c), odd, multiply_halves(even_bytes(c), even, s[2]));
    const uint32_t d = load_u32(bytes + 3 * stride);
    s[3] = multiply_halves(odd_bytes(d), odd, multiply_halves(even_bytes(d), even, s[3]));
#else
    s[0] += w->weight * x[0];
    s[1] += w->weight * x[stride];
    s[2] += w->weight * x[2 * stride];
    s[3] += w->weight * x[3 * stride];
#endif
}

/* An output row, whose first window begins at `corner`. */
SPECIALISE void run_row(const plane *p, const channel *k, const int8_t *corner, uint32_t stride, int8_t *to)
{
    int8_t *const last = to + (p->width - TILE);
    for (;;) {
        const int32_t bias = k->scale.bias;
        int32_t s[TILE] = {bias, bias, bias, bias};
        for (const step *w = k->kernel; w != k->end; w++)
            add_step(w, corner + w->offset, stride, s);
        if (k->is_usual) {
            const usual_scale usual = k->usual;
            to[0] = usual_output(s[0], &usual);
            to[1] = usual_output(s[1], &usual);
            to[2] = usual_output(s[2], &usual);
            to[3] = usual_output(s[3], &usual);
        } else {
            int32_t sums[TILE] = {s[0], s[1], s[2], s[3]};
            put(&k->scale, &p->outputs, sums, TILE, to);
        }
        if (to == last)
            break;
        const uint32_t next = last - to < TILE ? (uint32_t)(last - to) : TILE; /* or some outputs twice */
        to += next, corner += next * stride;
    }
}

NOT_INLINED void row_stride_1(const plane *p, const channel *k, const int8_t *corner, int8_t *to)
{
    run_row(p, k, corner, 1, to);
}

NOT_INLINED void row_any_stride(const plane *p, const channel *k, const int8_t *corner, int8_t *to)
{
    run_row(p, k, corner, p->across.stride, to);
}

/* The inputs of some output rows into the band; `at` is the first one's first window. */
static void copy_band(const plane *p, const int8_t *input, uint32_t at, uint32_t lines)
{
    const uint32_t from = p->across.begin, behind = p->across.end < p->band_pitch ? p->across.end : p->band_pitch;
    const int8_t zero_points[4] = {p->zero_point, p->zero_point, p->zero_point, p->zero_point};
    int8_t *to = p->band;
    for (const int8_t *end = to + lines * p->band_pitch; to != end; to += 4)
        copy_bytes(to, zero_points, 4);
    to = p->band + from;
    for (const uint32_t end = at + lines; at < end; at++, to += p->band_pitch) {
        if (at < p->down.begin || at >= p->down.end)
            continue;
        const int8_t *line = input + at * p->in_pitch + from;
        uint32_t x = 0;
        for (; x + from + 4 <= behind; x += 4)
            copy_bytes(to + x, line + x, 4);
        for (; x + from < behind; x++)
            to[x] = line[x];
    }
}

static void run_plane(const plane *p, const channel *k, const int8_t *input, int is_direct, int8_t *to)
{
    const uint32_t stride = p->down.stride, extent = (p->down.taps - 1u) * p->down.dilation + 1u;
    const int8_t *corner = input;
    for (uint32_t y = 0, in_band = 0; y < p->height; y++, to += p->pitch) {
        if (!is_direct && in_band == 0) {
            in_band = p->height - y < p->band_rows ? p->height - y : p->band_rows;
            copy_band(p, input, y * stride, (in_band - 1u) * stride + extent);
            corner = p->band;
        }
        (p->across.stride == 1 ? row_stride_1 : row_any_stride)(p, k, corner, to);
        corner += stride * (is_direct ? p->in_pitch : p->band_pitch);
        in_band--;
    }
}

/* A product of an output, or, before an output's products: how many they are, and where the output lies. */
typedef struct {
    uint16_t input, weight;
} product;

/* What each output of a small map adds up, the same in all channels. Returns where the list ends, NULL where it is too
 * long. */
static const product *list_products(const plane *p, product *list)
{
    product *to = list, *const end = list + GATHERED_WORDS;
    for (uint32_t y = 0; y < p->height; y++)
        for (uint32_t x = 0; x < p->width; x++) {
            const span rows = taps_inside(&p->down, y), columns = taps_inside(&p->across, x);
            const uint32_t count = (rows.end - rows.from) * (columns.end - columns.from);
            if (to + 1 + count > end)
                return NULL;
            *to++ = (product){(uint16_t)count, (uint16_t)(y * p->pitch + x)};
            for (uint32_t ky = rows.from; ky < rows.end; ky++)
                for (uint32_t kx = columns.from; kx < columns.end; kx++) {
                    const uint32_t at_y = y * p->down.stride + ky * p->down.dilation - p->down.begin;
                    const uint32_t at_x = x * p->across.stride + kx * p->across.dilation - p->across.begin;
                    *to++ = (product){(uint16_t)(at_y * p->in_pitch + at_x), (uint16_t)(ky * p->across.taps + kx)};
                }
        }
    return to;
}

/* All outputs of a channel of a small map, whose first input is `input`. */
static void run_small(const plane *p, const channel *k, const product *list, const product *end, const int8_t *weights,
                      const int8_t *input, int8_t *output)
{
    const int32_t zero_point = p->zero_point;
    int32_t bias = k->scale.bias;
    for (uint32_t i = 0; i < p->down.taps * p->across.taps; i++)
        bias += zero_point * weights[i];
    while (list != end) {
        const product *const behind = list + 1 + list->input;
        int8_t *const to = output + list->weight;
        int32_t sum = bias;
        while (++list != behind)
            sum += weights[list->weight] * (input[list->input] - zero_point);
        if (k->is_usual)
            *to = usual_output(sum, &k->usual);
        else
            put(&k->scale, &p->outputs, &sum, 1, to);
    }
}

/* What this has no room for, run_dense does. */
void run_depthwise(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    plane p = {
        .input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .in_pitch = in->pitch,
        .pitch = out->pitch,
        .height = out->height,
        .width = out->width,
        .outputs = range_of(l, out),
        .zero_point = in->zero_point,
        .steps = (l->kernel_w + AT_ONCE - 1u) / AT_ONCE,
        .band = (int8_t *)w->scratch,
    };
    /* Products with the border of a small map would be as many in vain. */
    const int is_small = p.width < TILE && in->plane <= UINT16_MAX && out->plane <= UINT16_MAX;
    const tensor bordered = is_small ? (tensor){0} : *in;
    p.down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, bordered.top, in->height, bordered.bottom,
                   out->height);
    p.across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, bordered.left, in->width, bordered.right,
                     out->width);
    product *const list = (product *)(void *)w->scratch;
    const product *end = NULL;
    const uint32_t rows = (l->kernel_h - 1u) * l->dilation_h + 1u;
    p.band_pitch = ((p.width - 1u) * l->stride_w + AT_ONCE * p.steps + 3u) & ~3u;
    const uint32_t lines = BAND_BYTES / p.band_pitch;
    if (is_small)
        end = list_products(&p, list);
    if (!end && (p.width < TILE || l->dilation_w > 1 || lines < rows || p.steps * l->kernel_h > MAX_STEPS)) {
        run_dense(w);
        return;
    }
    p.band_rows = (lines - rows) / l->stride_h + 1u;
    const int is_whole = are_inside(&p.down, 0, p.height) && are_inside(&p.across, 0, p.width);
    const uint32_t rows_a_group = out->channels / l->groups;
    const int8_t *weights = (const int8_t *)w->image + l->weights_at;
    scale_reader scales = open_scales(w->image + l->parameters_at);
    int8_t *output = w->activations + interior(out);
    for (uint32_t c = 0; c < in->channels; c++, p.input += in->plane)
        for (uint32_t i = 0; i < rows_a_group; i++, output += out->plane) {
            channel k;
            k.scale = read_scale(&scales);
            k.is_usual = is_usual(&k.scale, &p.outputs);
            if (k.is_usual)
                k.usual = usual_of(&k.scale, &p.outputs);
            if (end) {
                run_small(&p, &k, list, end, weights, p.input + p.down.begin * in->pitch + p.across.begin, output);
            } else {
                /* The last step of a window may end behind it, in the next plane. */
                const int is_direct = is_whole && c + 1u < in->channels;
                read_kernel(&p, weights, l->dilation_h * (is_direct ? in->pitch : p.band_pitch), &k);
                run_plane(&p, &k, p.input, is_direct, output);
            }
            weights += (uint32_t)l->kernel_h * l->kernel_w;
        }
}
