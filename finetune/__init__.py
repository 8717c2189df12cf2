"""Fine-tuning of text-to-image diffusion models: LoRA adapters that learn, load elsewhere, and can be proven."""

import logging

__version__ = "0.1.0"

# Where bitsandbytes is installed other libraries import it, and on a CPU it asks for kernels that nothing here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
