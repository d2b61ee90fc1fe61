"""The measurements of `reasonrt bench`, from which the figures in the documents come."""
