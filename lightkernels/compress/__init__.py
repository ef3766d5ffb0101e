"""Layer-wise differentiable compression: a network's bulky operators exchanged for light ones (Diao et al. 2021)."""
