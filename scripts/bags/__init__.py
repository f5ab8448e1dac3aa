"""A slide's tissue, its grid of patches linked across magnifications, and the bag that they make."""
