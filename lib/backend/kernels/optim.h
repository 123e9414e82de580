/// One step of an optimiser for one parameter. Read by __init__.py, which says what its marks mean.

//// kernel AdamW: <cmath>
    // kernel: AdamW;
    const double t = data["step"], beta1 = data["beta1"], beta2 = data["beta2"];
    const in0_type keep = 1 - data["lr"] * data["weight_decay"], size = data["lr"] / (1 - std::pow(beta1, t));
    const in0_type root = std::sqrt(1 - std::pow(beta2, t)), eps = data["eps"];
    const in0_type b1 = beta1, c1 = 1 - beta1, b2 = beta2, c2 = 1 - beta2;
    const int64_t count = in0->num;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type m = b1 * in2_p[i] + c1 * in1_p[i], v = b2 * in3_p[i] + c2 * in1_p[i] * in1_p[i];
        out1_p[i] = m;
        out2_p[i] = v;
        out0_p[i] = in0_p[i] * keep - size * m / (std::sqrt(v) / root + eps);
    }

//// kernel SGD
    // kernel: SGD;
    const in0_type momentum = data["momentum"], decay = data["weight_decay"], lr = data["lr"];
    const bool nesterov = data["nesterov"], first = data["first"];
    const int64_t count = in0->num;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type g = in1_p[i] + decay * in0_p[i], v = first ? g : momentum * in2_p[i] + g;
        out1_p[i] = v;
        out0_p[i] = in0_p[i] - lr * (nesterov ? g + momentum * v : v);
    }
