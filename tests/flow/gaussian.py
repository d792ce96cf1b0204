"""A Gaussian as data: everything about its flow is known in closed form."""

MEAN, DEVIATION = 0.7, 0.5


def velocity(path):
    """v(t, x) of data N(MEAN, DEVIATION^2), which is linear in x."""

    def field(t, x, args):
        c = path.coefficients(t)
        variance = c.alpha**2 * DEVIATION**2 + c.sigma**2
        slope = (c.alpha * c.d_alpha * DEVIATION**2 + c.sigma * c.d_sigma) / variance
        return c.d_alpha * MEAN + slope * (x - c.alpha * MEAN)

    return field
