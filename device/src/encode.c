/* The encoder: copy the input in, run the layers in order, copy the features out. */
#include "internal.h"

static void copy_in(const tensor *t, const int8_t *input, int8_t *activations)
{
    fill_border(t, activations);
    for (uint32_t c = 0; c < t->channels; c++)
        for (uint32_t y = 0; y < t->height; y++) {
            int8_t *row = activations + interior(t) + c * t->plane + y * t->pitch;
            for (uint32_t x = 0; x < t->width; x++)
                row[x] = *input++;
        }
}

static void copy_out(const tensor *t, const int8_t *activations, int8_t *features)
{
    for (uint32_t c = 0; c < t->channels; c++)
        for (uint32_t y = 0; y < t->height; y++) {
            const int8_t *row = activations + interior(t) + c * t->plane + y * t->pitch;
            for (uint32_t x = 0; x < t->width; x++)
                *features++ = row[x];
        }
}

entropi_status entropi_encode_observed(entropi *self, const int8_t *input, size_t input_length, int8_t *features,
                                       size_t features_length, entropi_observer *observer, void *context)
{
    if (!self || !self->image || !input || !features || features_length != self->features)
        return ENTROPI_E_ARGUMENT;
    const image_header h = read_header(self->image);
    const tensor in = read_tensor(self->image, &h, h.input);
    if (input_length != (size_t)in.channels * in.height * in.width)
        return ENTROPI_E_ARGUMENT;

    work w = {.image = self->image, .activations = (int8_t *)self->arena + self->working_at};
    copy_in(&in, input, w.activations);
    for (uint32_t i = 0; i < h.layers; i++) {
        run_layer(&h, i, &w);
        if (observer) {
            const tensor *const out = &w.out;
            const entropi_activation a = {
                .values = w.activations + interior(out),
                .layer = i,
                .channels = out->channels,
                .height = out->height,
                .width = out->width,
                .plane = out->plane,
                .pitch = out->pitch,
            };
            observer(context, &a);
        }
    }
    const tensor out = read_tensor(self->image, &h, h.output);
    copy_out(&out, w.activations, features);
    return ENTROPI_OK;
}

entropi_status entropi_encode(entropi *self, const int8_t *input, size_t input_length, int8_t *features,
                              size_t features_length)
{
    return entropi_encode_observed(self, input, input_length, features, features_length, NULL, NULL);
}
