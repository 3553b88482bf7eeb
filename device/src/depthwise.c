/* DEPTHWISE_CONV_2D with dense weights: an output channel reads one input channel. Its outputs are computed four of a row
 * at once. Where windows reach beyond the border, or a row has fewer outputs, the channel's inputs are first copied, a
 * band of rows at a time, into a plane of zero points. */
#include "dsp.h"
#include "internal.h"
#include "windows.h"

enum { TILE = 4, BAND_BYTES = GATHERED_WORDS * 4, MAX_FOURS = 16 };

typedef struct {
    const int8_t *input; /* first value of the first window */
    uint32_t in_pitch, pitch, height, width; /* all but the first of the output */
    axis down, across;
    range outputs;
    int8_t zero_point;
    uint32_t fours;      /* of a kernel row's weights, the last of them filled up with zeros */
    uint32_t band_pitch; /* what the windows of an output row take, up to their last four */
    uint32_t band_rows;  /* output rows whose inputs fit into a band */
    int8_t *band;
} plane;

/* Four weights: the first and third, the second and fourth, 16 bits each; or as they are. */
typedef struct {
#if ENTROPI_DSP
    uint32_t even, odd;
#else
    int8_t weights[4];
#endif
} four;

typedef struct {
    four kernel[MAX_FOURS];
    row_scale scale;
    quick_scale quick;
    int is_quick;
} channel;

static void read_kernel(const plane *p, const int8_t *weights, four *to)
{
    for (uint32_t ky = p->down.taps; ky; ky--)
        for (uint32_t left = p->across.taps; left; to++) {
            int8_t bytes[4] = {0};
            for (uint32_t i = 0; i < 4 && left; i++, left--)
                bytes[i] = *weights++;
#if ENTROPI_DSP
            const uint32_t word = load_u32((const uint8_t *)bytes);
            to->even = even_bytes(word), to->odd = odd_bytes(word);
#else
            copy_bytes(to->weights, bytes, 4);
#endif
        }
}

/* Add the products of four weights to the sums of four positions; x is the first input of the first position. */
SPECIALISE void add_four(const four *w, const int8_t *x, uint32_t stride, int32_t *s)
{
#if ENTROPI_DSP
    const uint8_t *bytes = (const uint8_t *)x;
    const uint32_t even = w->even, odd = w->odd, a = load_u32(bytes);
    if (stride == 1) {
        const uint32_t c = load_u32(bytes + 2), a1 = odd_bytes(a), c0 = even_bytes(c), c1 = odd_bytes(c);
        s[0] = multiply_halves(a1, odd, multiply_halves(even_bytes(a), even, s[0]));
        s[1] = multiply_halves(c0, odd, multiply_halves(a1, even, s[1]));
        s[2] = multiply_halves(c1, odd, multiply_halves(c0, even, s[2]));
        s[3] = multiply_halves(odd_bytes(load_u32(bytes + 3)), odd, multiply_halves(c1, even, s[3]));
        return;
    }
    const uint32_t b = load_u32(bytes + stride), c = load_u32(bytes + 2 * stride), d = load_u32(bytes + 3 * stride);
    s[0] = multiply_halves(odd_bytes(a), odd, multiply_halves(even_bytes(a), even, s[0]));
    s[1] = multiply_halves(odd_bytes(b), odd, multiply_halves(even_bytes(b), even, s[1]));
    s[2] = multiply_halves(odd_bytes(c), odd, multiply_halves(even_bytes(c), even, s[2]));
    s[3] = multiply_halves(odd_bytes(d), odd, multiply_halves(even_bytes(d), even, s[3]));
#else
    for (uint32_t i = 0; i < 4; i++, x++) {
        const int32_t weight = w->weights[i];
        s[0] += weight * x[0];
        s[1] += weight * x[stride];
        s[2] += weight * x[2 * stride];
        s[3] += weight * x[3 * stride];
    }
#endif
}

/* Output rows y..end - 1, whose first window begins at `corner` in rows of `pitch` bytes. */
SPECIALISE void run_rows(const plane *p, const channel *k, const int8_t *corner, uint32_t pitch, uint32_t y,
                         uint32_t end, uint32_t stride, int8_t *output)
{
    const uint32_t width = p->width;
    const int32_t down = (int32_t)(p->down.dilation * pitch) - 4 * (int32_t)p->fours;
    for (; y < end; y++, corner += p->down.stride * pitch) {
        int8_t *row = output + y * p->pitch;
        for (uint32_t x = 0; x < width; x += TILE) {
            if (x + TILE > width && width > TILE)
                x = width - TILE; /* some outputs twice */
            const int32_t bias = k->scale.bias;
            int32_t s[TILE] = {bias, bias, bias, bias};
            const int8_t *from = corner + x * stride;
            const four *w = k->kernel;
            for (uint32_t ky = p->down.taps; ky; ky--, from += down)
                for (uint32_t left = p->fours; left; left--, w++, from += 4)
                    add_four(w, from, stride, s);
            if (k->is_quick && width >= TILE) {
                const quick_scale quick = k->quick;
                row[x] = quick_output(s[0], &quick);
                row[x + 1] = quick_output(s[1], &quick);
                row[x + 2] = quick_output(s[2], &quick);
                row[x + 3] = quick_output(s[3], &quick);
            } else {
                int32_t sums[TILE] = {s[0], s[1], s[2], s[3]};
                put(&k->scale, &p->outputs, sums, width < TILE ? width : TILE, row + x);
            }
        }
    }
}

NOT_INLINED void rows_stride_1(const plane *p, const channel *k, const int8_t *corner, uint32_t pitch, uint32_t y,
                               uint32_t end, int8_t *output)
{
    run_rows(p, k, corner, pitch, y, end, 1, output);
}

NOT_INLINED void rows_any_stride(const plane *p, const channel *k, const int8_t *corner, uint32_t pitch, uint32_t y,
                                 uint32_t end, int8_t *output)
{
    run_rows(p, k, corner, pitch, y, end, p->across.stride, output);
}

/* The inputs of output rows y..end - 1 into the band. */
static void copy_band(const plane *p, const int8_t *input, uint32_t y, uint32_t end)
{
    const uint32_t last = (end - 1u) * p->down.stride + (p->down.taps - 1u) * p->down.dilation;
    const uint32_t from = p->across.begin, behind = p->across.end < p->band_pitch ? p->across.end : p->band_pitch;
    int8_t *to = p->band;
    for (uint32_t at = y * p->down.stride; at <= last; at++) {
        const int is_inside = at >= p->down.begin && at < p->down.end;
        const int8_t *row = input + at * p->in_pitch;
        for (uint32_t x = 0; x < p->band_pitch; x++)
            *to++ = is_inside && x >= from && x < behind ? row[x] : p->zero_point;
    }
}

static void run_plane(const plane *p, const channel *k, const int8_t *input, int is_direct, int8_t *output)
{
    const uint32_t height = p->height, most = is_direct ? height : p->band_rows;
    for (uint32_t y = 0, end; y < height; y = end) {
        end = height - y < most ? height : y + most;
        if (!is_direct)
            copy_band(p, input, y, end);
        const int8_t *corner = is_direct ? input : p->band;
        const uint32_t pitch = is_direct ? p->in_pitch : p->band_pitch;
        (p->across.stride == 1 ? rows_stride_1 : rows_any_stride)(p, k, corner, pitch, y, end, output);
    }
}

int run_depthwise(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations,
                  uint32_t *scratch)
{
    plane p = {
        .input = activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .in_pitch = in->pitch,
        .pitch = out->pitch,
        .height = out->height,
        .width = out->width,
        .down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom, out->height),
        .across =
            along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right, out->width),
        .outputs = range_of(l, out),
        .zero_point = in->zero_point,
        .fours = (l->kernel_w + 3u) / 4u,
        .band = (int8_t *)scratch,
    };
    const uint32_t columns = p.width < TILE ? TILE : p.width, rows = (l->kernel_h - 1u) * l->dilation_h + 1u;
    p.band_pitch = (columns - 1u) * l->stride_w + 4u * p.fours;
    const uint32_t lines = BAND_BYTES / p.band_pitch;
    if (l->groups != in->channels || l->dilation_w > 1 || lines < rows || p.fours * l->kernel_h > MAX_FOURS)
        return 0;
    p.band_rows = (lines - rows) / l->stride_h + 1u;
    const int is_whole = are_inside(&p.down, 0, p.height) && are_inside(&p.across, 0, p.width) && p.width >= TILE;
    const uint32_t rows_a_group = out->channels / l->groups;
    const int8_t *weights = (const int8_t *)image + l->weights_at;
    scale_reader scales = open_scales(image + l->parameters_at);
    int8_t *output = activations + interior(out);
    for (uint32_t c = 0; c < in->channels; c++, p.input += in->plane)
        for (uint32_t i = 0; i < rows_a_group; i++, output += out->plane) {
            channel k;
            k.scale = read_scale(&scales);
            k.is_quick = is_quick(&k.scale, &p.outputs);
            if (k.is_quick)
                k.quick = quick(&k.scale, &p.outputs);
            read_kernel(&p, weights, k.kernel);
            weights += (uint32_t)l->kernel_h * l->kernel_w;
            /* The last four of a window may end behind it, in the next plane. */
            run_plane(&p, &k, p.input, is_whole && c + 1u < in->channels, output);
        }
    return 1;
}
