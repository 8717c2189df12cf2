"""Fine-tuning of text-to-image diffusion models: LoRA adapters that learn, load elsewhere, and can be proven."""

__version__ = "0.1.0"
