/* The linear head: softmax regression on x[i] = (feature[i] - center[i]) * gain, trained by SGD. Sums run in the order
 * of the features and, inside a batch, of the samples: the same bits on every machine. */
#include "internal.h"

typedef struct {
    const int8_t *centers;
    float gain;
    float *weights, *biases, *momentum, *gradient, *scores, *errors;
    int8_t *batch;
} parts;

static parts locate(const entropi *self)
{
    const image_header h = read_header(self->image);
    const uint32_t classes = self->head.classes;
    uint8_t *a = self->arena;
    float *weights = (float *)(void *)a, *errors = (float *)(void *)(a + self->batch_at);
    const uint32_t error_count = classes * self->head.batch;
    return (parts){
        .centers = (const int8_t *)self->image + h.centers_at,
        .gain = h.feature_gain,
        .weights = weights,
        .biases = weights + classes * self->features,
        .momentum = (float *)(void *)(a + self->momentum_at),
        .gradient = (float *)(void *)(a + self->gradient_at),
        .scores = (float *)(void *)(a + self->working_at),
        .errors = errors,
        .batch = (int8_t *)(errors + error_count + (error_count & 1u)),
    };
}

/* scores[c] = biases[c] + gain * sum over i of weights[c][i] * (features[i] - centers[i]), four classes a pass */
static void score(const parts *p, const int8_t *features, uint32_t count, uint32_t classes)
{
    uint32_t c = 0;
    for (; c + 4 <= classes; c += 4) {
        const float *w = p->weights + c * count;
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        for (uint32_t i = 0; i < count; i++, w++) {
            const float x = (float)(features[i] - p->centers[i]);
            s0 += w[0] * x;
            s1 += w[count] * x;
            s2 += w[2 * count] * x;
            s3 += w[3 * count] * x;
        }
        p->scores[c] = p->biases[c] + p->gain * s0;
        p->scores[c + 1] = p->biases[c + 1] + p->gain * s1;
        p->scores[c + 2] = p->biases[c + 2] + p->gain * s2;
        p->scores[c + 3] = p->biases[c + 3] + p->gain * s3;
    }
    for (; c < classes; c++) {
        const float *w = p->weights + c * count;
        float s = 0.0f;
        for (uint32_t i = 0; i < count; i++)
            s += w[i] * (float)(features[i] - p->centers[i]);
        p->scores[c] = p->biases[c] + p->gain * s;
    }
}

static int finite(float x) { return x - x == 0.0f; }

/* Turn scores into probabilities; best gets the class with the highest score, the first of equals. */
static entropi_status softmax(float *scores, uint32_t classes, uint32_t *best, float *log_sum)
{
    *best = 0;
    for (uint32_t c = 0; c < classes; c++) {
        if (!finite(scores[c]))
            return ENTROPI_E_NUMERIC;
        if (scores[c] > scores[*best])
            *best = c;
    }
    const float top = scores[*best];
    float sum = 0.0f;
    for (uint32_t c = 0; c < classes; c++) {
        scores[c] = exp_negative(scores[c] - top);
        sum += scores[c];
    }
    for (uint32_t c = 0; c < classes; c++)
        scores[c] /= sum;
    *log_sum = top + log_above_one(sum);
    return ENTROPI_OK;
}

entropi_status entropi_predict(entropi *self, const int8_t *features, size_t features_length, uint16_t *label,
                               float *score_out)
{
    if (!self || !self->image || !features || !label || !score_out || features_length != self->features)
        return ENTROPI_E_ARGUMENT;
    const parts p = locate(self);
    uint32_t best;
    float log_sum;
    score(&p, features, self->features, self->head.classes);
    const entropi_status status = softmax(p.scores, self->head.classes, &best, &log_sum);
    if (status)
        return status;
    *label = (uint16_t)best;
    *score_out = p.scores[best];
    return ENTROPI_OK;
}

/* One parameter's step along the batch's mean gradient. */
static inline void step(const entropi_head_config *h, float *weight, float *momentum, float gradient)
{
    if (momentum) {
        *momentum = h->momentum * *momentum + gradient;
        gradient = *momentum;
    }
    *weight -= h->learning_rate * gradient;
}

static void apply(entropi *self, const parts *p)
{
    const entropi_head_config *h = &self->head;
    const uint32_t count = self->features, classes = h->classes, pending = self->pending;
    const float mean = 1.0f / (float)pending, scale = p->gain * mean;
    const int has_momentum = h->bytes_per_parameter >= 8, has_gradient = h->bytes_per_parameter == 12;
    for (uint32_t c = 0; c < classes; c++) {
        float *w = p->weights + c * count, *m = has_momentum ? p->momentum + c * count : NULL;
        float *g = p->gradient + c * count;
        for (uint32_t i = 0; i < count; i++) {
            float sum = 0.0f;
            if (has_gradient) {
                sum = g[i];
                g[i] = 0.0f;
            } else {
                for (uint32_t s = 0; s < pending; s++)
                    sum += p->errors[s * classes + c] * (float)(p->batch[s * count + i] - p->centers[i]);
            }
            step(h, w + i, m ? m + i : NULL, scale * sum + h->weight_decay * w[i]);
        }
    }
    for (uint32_t c = 0; c < classes; c++) {
        float sum = 0.0f, *g = p->gradient + classes * count + c;
        if (has_gradient) {
            sum = *g;
            *g = 0.0f;
        } else {
            for (uint32_t s = 0; s < pending; s++)
                sum += p->errors[s * classes + c];
        }
        step(h, p->biases + c, has_momentum ? p->momentum + classes * count + c : NULL, mean * sum);
    }
    self->pending = 0;
}

entropi_status entropi_learn(entropi *self, const int8_t *features, size_t features_length, uint16_t label,
                             float *loss)
{
    if (!self || !self->image || !features || !loss || features_length != self->features ||
        label >= self->head.classes)
        return ENTROPI_E_ARGUMENT;
    const parts p = locate(self);
    const uint32_t count = self->features, classes = self->head.classes;
    uint32_t best;
    float log_sum;
    score(&p, features, count, classes);
    const float own = p.scores[label];
    const entropi_status status = softmax(p.scores, classes, &best, &log_sum);
    *loss = status ? 0.0f : log_sum - own;
    if (status || !finite(*loss))
        return ENTROPI_E_NUMERIC;

    p.scores[label] -= 1.0f; /* the error: probabilities minus one-hot label */
    if (self->head.bytes_per_parameter == 12) {
        for (uint32_t c = 0; c < classes; c++) {
            float *g = p.gradient + c * count;
            for (uint32_t i = 0; i < count; i++)
                g[i] += p.scores[c] * (float)(features[i] - p.centers[i]);
            p.gradient[classes * count + c] += p.scores[c];
        }
    } else {
        for (uint32_t c = 0; c < classes; c++)
            p.errors[self->pending * classes + c] = p.scores[c];
        for (uint32_t i = 0; i < count; i++)
            p.batch[self->pending * count + i] = features[i];
    }
    if (++self->pending == self->head.batch)
        apply(self, &p);
    return ENTROPI_OK;
}

entropi_status entropi_flush(entropi *self)
{
    if (!self || !self->image)
        return ENTROPI_E_ARGUMENT;
    if (self->pending) {
        const parts p = locate(self);
        apply(self, &p);
    }
    return ENTROPI_OK;
}

entropi_status entropi_head(const entropi *self, const float **parameters, size_t *count)
{
    if (!self || !self->image || !parameters || !count)
        return ENTROPI_E_ARGUMENT;
    *parameters = (const float *)(const void *)self->arena;
    *count = (size_t)self->head.classes * (self->features + 1u);
    return ENTROPI_OK;
}
