"""The measurements behind `reasonrt bench`: every figure in the documents comes from one of them."""
