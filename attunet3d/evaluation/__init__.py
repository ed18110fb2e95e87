"""How good label maps are: metrics, scores and figures."""
