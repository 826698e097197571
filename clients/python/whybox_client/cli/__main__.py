"""`python -m whybox_client.cli` is `whybox`."""

from whybox_client.cli import main

main(prog_name="whybox")
