"""`tango mini`: train the small model, write its benchmark's clips, and evaluate on them."""
