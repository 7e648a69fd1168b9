"""`python -m clipguide`, which `accelerate launch -m clipguide` needs."""

from .cli.app import main

main()
