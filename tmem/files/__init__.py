"""Files and folders that appear whole, and the records inside them."""
