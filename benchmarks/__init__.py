"""Time and error of ``fastlik.ode_nll`` beside the ways people compute the same number today."""
