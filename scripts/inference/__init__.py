"""From a slide's path to what is served."""
