"""DKDM Lab: data-free knowledge distillation of diffusion models (Xiang et al., CVPR 2025)."""
