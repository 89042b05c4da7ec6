"""What the paper claims about attention and similarity, measured on any video; and a search for attention sinks."""
