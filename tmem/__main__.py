"""`python -m tmem`, for launchers such as torchrun that want a module."""

from .cli import main

main()
