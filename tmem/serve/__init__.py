"""An OpenAI-compatible endpoint where every user has a memory in the weights; `tmem serve` starts it. Needs tmem[serve]."""
