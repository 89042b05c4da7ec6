"""Videos as frames with times: files by an exact reader, folders and frames in memory. `reading` is the way in."""
