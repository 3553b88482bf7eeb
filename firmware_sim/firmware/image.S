/* The device image, word for word; ENTROPI_IMAGE is the file's name. */
    .section .image, "a", %progbits
    .balign 8
    .global image_start
    .global image_end
image_start:
    .incbin ENTROPI_IMAGE
image_end:
