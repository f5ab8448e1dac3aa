"""From a slide's path to what is served: the transforms around the network, and the inferer that checks its weights."""
