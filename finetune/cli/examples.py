"""Two examples of every command, as `--help` shows them; a test parses each."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("ft demo", "ft lora --data ./imgs --rank 8"),
    "lora": (
        "ft lora ./imgs --trigger mystyle --dry-run",
        "ft lora ./imgs --recipe sdxl-style --holdout 0.1",
    ),
    "dreambooth": (
        "ft dreambooth --data ./owl --token sks --class bird",
        "ft dreambooth --data ./owl --token sks --class bird --adapter lora --rank 16",
    ),
    "textual-inversion": (
        "ft textual-inversion --data ./owl --token '<owl>' --init-word bird",
        "ft ti --data ./art --token '<art>' --vectors 4 --template style",
    ),
    "vae": (
        "ft vae --data ./xrays --base sd15",
        "ft vae ./xrays --recipe sdxl-vae --holdout 0.1",
    ),
    "generate": (
        'ft generate --adapter runs/lora/lora.safetensors --prompt "fox face" --count 4 --grid',
        'ft generate --base sd15-inpainting --image room.png --mask wall.png --prompt "a window"',
    ),
    "demo": ("ft demo", "ft demo --steps 100 --out runs/short"),
    "models": ("ft models", "ft models tiny"),
    "config": ("ft config", "ft config --schema"),
    "clean": ("ft clean --dry-run", "ft clean --whole runs/old --yes"),
    "cache": ("ft cache ls", "ft cache prune --max-size 10GB"),
    "cache ls": ("ft cache ls", "ft cache ls --json"),
    "cache prune": ("ft cache prune --max-size 10GB", "ft cache prune --max-size 0 --dry-run"),
    "help": ("ft help", "ft help data check"),
    "version": ("ft version", "ft version --json"),
    "data": ("ft data check --data ./imgs", "ft data preview --data ./imgs --flip"),
    "data check": ("ft data check --data ./imgs", "ft data check --data ./imgs --holdout 0.1 --strict"),
    "data preview": ("ft data preview --data ./imgs", "ft data preview --data ./imgs --resolution 512 --count 12 --out crops.png"),
    "data cache": ("ft data cache --data ./imgs --base sdxl", "ft data cache --prune"),
    "data caption": (
        "ft data caption --data ./imgs --model Salesforce/blip-image-captioning-base",
        'ft data caption --data ./imgs --model ./captioner --prefix "mystyle, " --overwrite',
    ),
    "adapter": ("ft adapter inspect lora.safetensors", "ft adapter convert lora.safetensors --to diffusers"),
    "adapter inspect": ("ft adapter inspect lora.safetensors", "ft adapter inspect lora.safetensors --norms --strict"),
    "adapter convert": (
        "ft adapter convert lora.safetensors --to diffusers",
        "ft adapter convert lora.safetensors --to svd --rank 16 --out small.safetensors",
    ),
    "adapter average": ("ft adapter average runs/lora --length 0.1", "ft adapter average runs/lora --length 0.05 --name soft"),
    "adapter verify": ("ft adapter verify lora.safetensors", "ft adapter verify lora.safetensors --base sd15 --json"),
    "recipe": ("ft recipe ls", "ft recipe show sdxl-style"),
    "recipe ls": ("ft recipe ls", "ft recipe ls --json"),
    "recipe show": ("ft recipe show sdxl-style", "ft recipe show ./mine.yaml"),
    "recipe cp": ("ft recipe cp sdxl-style", "ft recipe cp sdxl-style mine.yaml"),
    "recipe check": ("ft recipe check mine.yaml", "ft recipe check tiny-style sdxl-style --json"),
}
