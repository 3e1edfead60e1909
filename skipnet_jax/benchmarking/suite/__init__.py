"""Everything that is measured on an accelerator, in one command."""
