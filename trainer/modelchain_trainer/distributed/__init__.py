"""Many processes that train one stage: started and watched, what they say to each other, who holds which part."""
