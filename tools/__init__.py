"""What the project's own build uses: the documentation site and the release."""
