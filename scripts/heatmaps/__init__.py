"""Maps over patches, and every form in which they leave: PNG, MHA, GeoJSON, figures."""
