"""The same job on other people's systems. Nothing of the product needs what these run on."""
